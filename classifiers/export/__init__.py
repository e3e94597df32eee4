"""From a model's files to what `classifiers.encoders` serves. Offline: needs torch and onnx."""
