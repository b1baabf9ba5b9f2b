"""Every private name of torch, and every patch of it; nothing else of this project has one."""
