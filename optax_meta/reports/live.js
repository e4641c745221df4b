// A page that is watched: it asks for itself again and takes over what is new. Only where other
// sections or lines have come is it loaded anew, which forgets what the reader chose.

const PERIOD = 2000;
const shape = (page) => JSON.stringify([
  [...page.querySelectorAll("h1, h2, figcaption")].map((node) => node.textContent),
  JSON.parse(page.getElementById("chart-data").textContent).map((c) => [c.id, c.series.map((s) => s.name)]),
]);
let shown = shape(document), tag = "";

const takeOver = (page) => {
  if (shape(page) !== shown) { location.reload(); return; }
  for (const kind of ["#verdict", "#setting", ".scroll"]) {
    const [here, there] = [document, page].map((p) => p.querySelector(kind));
    if (here) here.innerHTML = there.innerHTML;
  }
  const pictures = page.querySelectorAll("picture");
  document.querySelectorAll("picture").forEach((node, i) => node.replaceWith(document.importNode(pictures[i], true)));
  const fresh = JSON.parse(page.getElementById("chart-data").textContent);
  charts.forEach((chart, i) => chart.update(fresh[i]));
};

const refresh = async () => {
  const status = document.getElementById("live");
  try {
    const answer = await fetch(location.pathname, { cache: "no-store", headers: tag ? { "If-None-Match": tag } : {} });
    // Who is dragging over a chart is not disturbed: the next time will do.
    if (answer.status === 200 && !charts.some((chart) => chart.dragged !== null)) {
      const text = await answer.text();
      takeOver(new DOMParser().parseFromString(text, "text/html"));
      tag = answer.headers.get("ETag");
      status.dataset.taken = new Date().toLocaleTimeString();
    }
    status.textContent = `Live. Last change at ${status.dataset.taken}.`;
  } catch {
    status.textContent = "Not live: “optax-meta watch” has ended or cannot be reached.";
  }
};
const watch = async () => {
  if (!document.hidden) await refresh();
  setTimeout(watch, PERIOD);
};
watch();
