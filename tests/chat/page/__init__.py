"""A package, so that what has the scope "package" ends with the last test here: playwright's loop would break others."""
