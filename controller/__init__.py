"""The controller: stores models, builds them, decides rollouts. Never imports the agent."""
