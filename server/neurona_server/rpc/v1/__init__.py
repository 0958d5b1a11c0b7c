"""The services of neurona.v1: Prediction and Models."""
