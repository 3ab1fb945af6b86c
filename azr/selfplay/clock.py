"""Where the time of a step goes."""

from collections import defaultdict
from collections.abc import Mapping
from time import perf_counter, process_time

from azr.rollout import RolloutEngine
from azr.run.metrics import PHASES


class Clock:
    """Splits the wall time of a step into laps; what belongs to no other of PHASES is "other"."""

    def __init__(self, engine: RolloutEngine):
        self._engine, self._tokens = engine, engine.generated_tokens
        self._start = self._last = perf_counter()
        self._cpu = -process_time()
        self._seconds: defaultdict[str, float] = defaultdict(float)

    def lap(self, phase: str) -> None:
        """Ends a lap: the time since the last one was the phase's."""
        now = perf_counter()
        self._seconds[phase] += now - self._last
        self._last = now
        if phase == "update":  # evaluation, which some steps have, comes next
            self._cpu += process_time()

    def metrics(self, update: Mapping[str, float]) -> dict[str, float]:
        """Returns `time/*` in seconds and `perf/*` in tokens a second, the step being over.

        `update` are the metrics of its update.
        """
        total = perf_counter() - self._start
        engine = self._engine
        seconds = {phase: self._seconds[phase] for phase in PHASES if phase != "other"}
        generated = engine.generated_tokens - self._tokens
        shares = {
            "perf/decode_roofline_frac": engine.decode_roofline_frac(),
            "perf/rollout_roofline_frac": engine.rollout_roofline_frac(),
        }
        return {
            **{f"time/{phase}_s": spent for phase, spent in seconds.items()},
            "time/other_s": total - sum(seconds.values()),
            "time/step_s": total,
            **({"time/step_cpu_s": self._cpu} if engine.device.type == "cpu" else {}),
            **{name: share for name, share in shares.items() if share is not None},
            "perf/gen_tok_s": generated / max(seconds["rollout"] + seconds["eval"], 1e-9),
            "perf/train_tok_s": update.get("policy/tokens", 0.0) / max(seconds["update"], 1e-9),
        }
