//! From the files of a commit to a [`Fleet`], with every problem found on the way.
