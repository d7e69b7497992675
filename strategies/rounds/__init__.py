"""The server's round loop: who takes part, what is sent, what is believed, what is kept."""
