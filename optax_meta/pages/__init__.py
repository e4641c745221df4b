"""What the pages of reports are made of: their files, charts, template and script."""
