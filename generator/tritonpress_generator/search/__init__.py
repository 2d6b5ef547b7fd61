"""The search for what a recipe should do: candidates, what is known of them before and after they are measured."""
