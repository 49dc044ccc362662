"""What is true on disk and in the run file: values only, no torch, no Ray. Imports nothing of the project but itself."""
