"""What happens around a method: the loop, its records, devices, processes, memory."""
