"""Names of what lies in `--result_dir` beside the outputs that have flags of their own, and in some of these."""

RUNS_FOLDER, STEPS_FOLDER = "runs", "steps"
"""What each run was and took; what each step's result was made from."""
METRICS_FOLDER, SCORES_FOLDER = "metrics", "scores"
"""Losses of trainings; scores of evaluations."""
STATE_FOLDER = "state"
"""Where trainings that have not ended go on from."""
IRN_FOLDER = "irn"
"""IRN's output, where `--keep_irn` keeps it."""
CLASSES_FILE = "classes.json"
"""Beside the masks of predict and the overlays of show: ids and colours of the classes; for predict also the share of
each in each photograph, and the folders of these."""
REPORT, PICTURE_FOLDER = "report.html", "report"
RESULT_FOLDERS = (
    *(RUNS_FOLDER, STEPS_FOLDER, METRICS_FOLDER, SCORES_FOLDER),
    *(STATE_FOLDER, IRN_FOLDER, PICTURE_FOLDER),
)
"""All folders that a run may write into without being told to."""
