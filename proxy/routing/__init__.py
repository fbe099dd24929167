"""From the model name an app asks for to what is asked to answer, in which order."""
