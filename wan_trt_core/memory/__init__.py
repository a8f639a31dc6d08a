"""What a run will hold, which settings would lower it, and what the events of one come to: no measuring, no pages."""
