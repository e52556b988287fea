"""Every bound that a verifying target judges itself by, in one place (sources: the project's targets)."""

#: NASA IMS test 2, files counted from 0. The fault shows from file 532, so with a vote of 3 in 5 the first
#: honest event is at 534; the mark is the article's. The neighbours hear the fault from about file 660.
IMS = {
    "b1": (534, 540),
    "mark": 534,
    "others_before": 650,
    "simulated_early": 0,
    "simulated_found": 0.9,
    # With a budget of false alarms and nothing else set: no event on any bearing before this file.
    "budget": "1 per 30 d",
    "budget_silent": 500,
}

#: Milliseconds hold for one core of `core_ghz`; `ratio` is to the usual libraries in the same run; `agree` is the
#: relative difference of an int8 score from the rival's float32 one; of the transform, of the largest coefficient;
#: of a picture, 1 - correlation with the exact means of the full-size one. `ratio` is to pywt in float64, as it
#: comes from Python's numbers; in float32 pywt takes half of that.
BENCH = {
    "core_ghz": 3.6,
    "vibration": {"ms": 0.40, "ratio": 10.0},
    "vibration_whole": {"ms": 0.60, "ratio": 4.0},
    "clip": {"ms": 1.9, "ratio": 5.0},
    "cwt": {"ms": 2.5, "ratio": 40.0, "agree": 1e-5},
    "scalogram": {"ms": 0.8, "ratio": 100.0, "agree": 1e-3},
    "scalogram_window": {"ms": 1.7, "ratio": 40.0},
    "agree": 0.05,
    "rss_mib": 80.0,
    "start_s": 1.5,
}

#: Weak supervision: mean AUC of stage 2 less that of the control must exceed this, on every set.
SOUND = {"gain": 0.0}

#: `make results`: the shipped file's AUC may differ from the float32 one by `parity`; a bundle holds at most `kb`; the best
#: network's mean AUC over the hard digits of MNIST is at least `mnist_auc`.
RESULTS = {"parity": 0.03, "kb": 3000.0, "mnist_auc": 0.93}

#: Intersection over union of the generator's mask and the burst, mean over twenty.
MASK = {"iou": 0.5}

#: `make arm64`, `make oldest`: |difference of score ÷ threshold| from this machine, relative above the limit.
ELSEWHERE = {"differs": 0.05}

#: `make deb-test`: the exposure of the installed unit as systemd-analyze prints it.
DEB = {"exposure": 2.0}

#: `make boot-test`: the virtual machine, how long a boot may take with all its steps, and what a cut of the power may cost: seconds
#: of scores (the kernel writes what is 30 s old, at its next round of 5 s).
BOOT = {"disk_mib": 3000, "memory_mib": 1024, "patience_s": 900.0, "lost_s": 40.0}

#: Three stages without labels: the classifier's F1 on held-out records may not lie further than `slack` below that of the
#: same network learnt from stage 1's scores alone. Precision and recall of the pseudo-labels are shown, not judged.
STAGED = {"slack": 0.0}

#: Commissioning from the generic bundle: events before the fault begins, on all machines together; shares of machines that are
#: armed, whose fault is found before it is fully grown, and that are refused when commissioned at severity `faulty`.
COMMISSION = {"events_before": 0, "armed": 1.0, "found": 1.0, "refused": 1.0, "faulty": 0.5}

#: `make budget`: true ÷ promised events: the median of a cell's draws, and the span that `share` of them lies in; what must
#: be promised for independent and weakly correlated gamma and log-normal scores, in seconds an event.
BUDGET = {"median": (0.5, 2.0), "draws": (0.3, 3.0), "share": 0.9, "must_s": 7 * 86400.0}

#: What-if over a month of windows: processor seconds of the whole command (it has one thread: on an idle core they are seconds),
#: and at least so many events to compare.
WHAT_IF = {"windows": 259_200, "seconds": 2.0, "events": 20}

#: `make fuzz`: at least this share of the mutated messages decodes; an input takes at most `hang_s`, a process of many is silent
#: for at most `silent_s`; branches of the payload and of the configuration code in percent.
#: growth_mib: of a process that is given the same mutants again and again; also of large objects over a run of new ones; growth_blocks: small
#: blocks over that.
FUZZ = {"decoded_share": 0.1, "hang_s": 5.0, "silent_s": 120.0, "growth_mib": 0.25, "growth_blocks": 5000.0, "coverage": 95.0}

#: `make chaos`: a full run; windows sent less rows counted are at most `s_per_kill` seconds of rows a kill; so many events fall
#: while the agent, the broker or the link between them is down.
CHAOS = {"minutes": 20.0, "kills": 200, "cuts": 20, "s_per_kill": 5.0, "events_while_down": 200}

#: `make bytes`: windows of a full run, how many come in a second, and the most that one may cost on the disk.
BYTES = {"windows": 10_000, "per_s": 20.0, "per_window": 512.0}

#: `make soak`: what may rise over the last three quarters of a day: resident memory in MiB, messages that wait, events in the
#: outbox, open descriptors, threads (half of one by regression is noise of a moment).
SOAK = {"slope_mib": 1.0, "queue_growth": 10.0, "outbox_growth": 1.0, "descriptor_growth": 0.5, "thread_growth": 0.5}
