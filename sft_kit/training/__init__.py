"""What a training loop needs beside the loop itself."""
