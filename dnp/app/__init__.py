"""The application: the command line, what it prints, the PNGs and sheets that it writes."""
