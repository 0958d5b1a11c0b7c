"""What a person chooses at the top of a dashboard."""

from panels import DATASOURCE, Json

PROCESSES = 'job=~"$job"'


def datasource() -> Json:
    return {
        "type": "datasource",
        "name": "datasource",
        "label": "Data source",
        "query": "prometheus",
        "regex": "",
        "hide": 0,
        "refresh": 1,
        "multi": False,
        "includeAll": False,
        "options": [],
        "skipUrlSync": False,
    }


def job() -> Json:
    return _labels("job", "Job", "label_values(neurona_transport_info, job)", "several")


def instance(how_many: str = "several") -> Json:
    values = f"label_values(neurona_transport_info{{{PROCESSES}}}, instance)"
    return _labels("instance", "Process", values, how_many)


def model(how_many: str = "several") -> Json:
    selected = f'{PROCESSES}, instance=~"$instance"'
    values = f"label_values(neurona_version_state{{{selected}}}, model)"
    return _labels("model", "Model", values, how_many)


def version() -> Json:
    selected = f'{PROCESSES}, instance=~"$instance", model=~"$model"'
    values = f"label_values(neurona_version_state{{{selected}}}, version)"
    return _labels("version", "Version", values, "several")


def _labels(name: str, label: str, values: str, how_many: str) -> Json:
    """The values of a label; `how_many` of them is "one" or "several"."""
    several = how_many == "several"
    variable: Json = {
        "type": "query",
        "name": name,
        "label": label,
        "datasource": DATASOURCE,
        "query": values,
        "regex": "",
        "hide": 0,
        "refresh": 2,  # whenever the time that is shown changes
        "sort": 3 if name == "version" else 5,  # by number, by the alphabet
        "multi": several,
        "includeAll": several,
        "options": [],
        "skipUrlSync": False,
    }
    if several:
        variable["current"] = {"selected": True, "text": ["All"], "value": ["$__all"]}
        # Not the empty one: what asks for a model that is not there counts under it.
        variable["allValue"] = ".+"
    return variable
