"""What turns a trained model into another: adapters, averages, teachers."""
