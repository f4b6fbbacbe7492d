"""Numbers that say how good restored images are: against the ground truth, alone, or as a set."""

from lafr.metrics.facts import FACTS

# Which way is better, as papers print it; a metric not named here is shown without a mark.
DIRECTION = {name: facts.direction for name, facts in FACTS.items()}
