"""Results of studies as Markdown and plots."""
