"""From a model's name to tensors on a device: resolve says what a source holds, fill moves it into a model."""
