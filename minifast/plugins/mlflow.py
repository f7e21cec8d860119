"""Runs for MLflow."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from ..callback import Callback, Run


class MLflow(Callback):
    """Logs a fit as a run of MLflow: what was trained, and the table's columns after each epoch.

    Needs the extra: `pip install "minifast[mlflow]"`. A run that ends by an error, Ctrl-C or a
    pause before its last epoch is marked as killed.

    Args:
        uri: The tracking server or store, a folder as a `Path`; None for the one MLflow is set to.
            (For a folder MLflow 3.17 and later want `MLFLOW_ALLOW_FILE_STORE=true` to be set.)
        experiment: The experiment's name, made if it is not there.
        name: The run's name; MLflow finds one if not given.
        params: Further parameters to log.

    Attributes:
        run_id: The run's number in MLflow, once training has begun.

    Raises:
        ModuleNotFoundError: when training begins, if MLflow is not installed.

    Examples:
        >>> import os, tempfile
        >>> from minifast.testing import example_fit
        >>> os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"
        >>> log = MLflow(Path(tempfile.mkdtemp()), experiment="digits")
        >>> history = example_fit([log])
        >>> len(log.run_id)
        32
    """

    first_process_only = True

    def __init__(
        self,
        uri: str | Path | None = None,
        experiment: str = "minifast",
        name: str | None = None,
        params: dict[str, Any] | None = None,
    ) -> None:
        self.uri, self.experiment, self.name, self.params = uri, experiment, name, params
        self.run_id = ""
        self._client: Any = None

    def on_train_begin(self, run: Run) -> None:
        """Makes the run, by a client of its own: the active run of MLflow is left alone."""
        self._client, self.run_id = None, ""
        try:
            from mlflow import MlflowClient
        except ModuleNotFoundError as error:
            error.add_note('install it: pip install "minifast[mlflow]"')
            raise
        state = random.getstate()  # MLflow draws names and numbers from Python's own generator
        try:
            self._begin(run, MlflowClient)
        finally:
            random.setstate(state)

    def _begin(self, run: Run, make_client: Any) -> None:
        uri = self.uri.absolute().as_uri() if isinstance(self.uri, Path) else self.uri
        self._client = make_client(tracking_uri=uri)
        found = self._client.get_experiment_by_name(self.experiment)
        number = found.experiment_id if found else self._client.create_experiment(self.experiment)
        self.run_id = self._client.create_run(number, run_name=self.name).info.run_id
        for key, value in {**_facts(run), **(self.params or {})}.items():
            self._client.log_param(self.run_id, key, value)

    def on_epoch_end(self, run: Run) -> None:
        """Logs the epoch's row."""
        for name, value in run.values.items():
            if name != "epoch":
                self._client.log_metric(self.run_id, name, float(value), step=run.epoch)

    def on_train_end(self, run: Run) -> None:
        """Ends the run."""
        client, self._client = self._client, None
        if client is not None and self.run_id:
            stopped = run.stopped is not None and not run.paused
            whole = stopped or len(run.history) == run.epochs
            client.set_terminated(self.run_id, "FINISHED" if whole else "KILLED")


def _facts(run: Run) -> dict[str, Any]:
    return {
        "epochs": run.epochs,
        "crit": type(run.crit).__name__,
        "opt": type(run.opt).__name__,
        "lr": ", ".join(f"{float(group['lr']):g}" for group in run.opt.param_groups),
        "parameters": sum(p.numel() for p in run.net.parameters()),
    }
