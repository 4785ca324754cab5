"""What all experiments share: command line, output folder, populations, report and tables."""
