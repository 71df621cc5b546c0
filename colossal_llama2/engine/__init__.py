"""Room 4, the machine: everything that touches ColossalAI."""
