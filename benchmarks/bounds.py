"""Every bound that a verifying target judges itself by, in one place (sources: the project's targets)."""

#: NASA IMS test 2, files counted from 0. The fault shows from file 532, so with a vote of 3 in 5 the first
#: honest event is at 534; the mark is the article's. The neighbours hear the fault from about file 660.
IMS = {"b1": (534, 540), "mark": 534, "others_before": 650, "simulated_early": 0, "simulated_found": 0.9}
