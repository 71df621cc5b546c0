"""Room 3, examples: records, encoding, splicing, buckets, Arrow, loading."""
