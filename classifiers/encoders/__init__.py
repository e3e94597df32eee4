"""What runs at request time: encoders in ONNX Runtime, and the features a head reads."""
