"""Routes that judge: a small tier answers, or is passed over, by what a judge says of its answer or of the question."""
