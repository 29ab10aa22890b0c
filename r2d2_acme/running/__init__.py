"""The nodes of the distributed agent, and how they are started and watched."""
