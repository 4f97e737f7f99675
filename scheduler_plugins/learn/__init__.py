"""What tasks cost, learned while they run. Import the modules; `costs` is the one to start with."""
