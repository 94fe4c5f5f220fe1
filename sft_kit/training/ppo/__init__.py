"""PPO as a loop of its own on accelerate: the policy makes its own data."""
