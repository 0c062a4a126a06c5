"""What every room uses: errors, files, signals, progress, compilation, plots."""
