"""What a program costs: FLOPs, memory, and the data sheets of the hardware."""
