"""Call a Neurona server with Triton's client: programs written for Triton work unchanged.

    python triton_client.py                       # a server at 127.0.0.1:8001
    python triton_client.py models.example.com:8001

Needs: pip install 'tritonclient[grpc]' (in a virtual environment of its own: it wants other
versions of protobuf and grpcio than neurona)
"""

import sys

import numpy as np
import tritonclient.grpc as triton


def main(address: str) -> None:
    """Run the example."""
    with triton.InferenceServerClient(address) as client:
        print("ready:", client.is_model_ready("lenet5"))

        # Inputs have names and dtypes, and always a batch axis.
        images = np.zeros((2, 8, 8), np.float32)
        image = triton.InferInput("image", list(images.shape), "FP32")
        image.set_data_from_numpy(images)

        # class_count gives "probability:index:label" for the best classes of each row.
        outputs = [triton.InferRequestedOutput("probabilities", class_count=2)]
        response = client.infer("lenet5", [image], outputs=outputs)
        for row in response.as_numpy("probabilities"):
            print([text.decode() for text in row])


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:8001")
