"""What Inference Endpoints run: a request with a history in, recommended items out.

A request is `{"inputs": ["alien", "heat"], "parameters": {"top_k": 5, "exclude": ["fargo"]}}`.
"""

from typing import Any

from transformers import pipeline


class EndpointHandler:
    """The model of the folder that this file lies in.

    Args:
        path: The folder.
    """

    def __init__(self, path: str = ""):
        self.recommend = pipeline(
            "next-item-recommendation",
            path,
            trust_remote_code=True,  # the code that lies beside this file
            model_kwargs={"use_safetensors": True},
        )

    def __call__(self, data: dict[str, Any]) -> list[Any] | dict[str, str]:
        """Answer one request.

        Args:
            data: `inputs`, one history of raw items or several; and optionally `parameters`, the
                options of the pipeline.

        Returns:
            Items with scores and titles, or lists of them; or an `error`.
        """
        if "inputs" not in data:
            return {"error": "a request needs inputs, a history of raw items or several"}
        try:
            return self.recommend(data["inputs"], **data.get("parameters") or {})
        except (KeyError, TypeError, ValueError) as error:
            return {"error": str(error.args[0] if error.args else error)}
