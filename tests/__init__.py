"""The test-suite: `cases` to test on, slow obvious twins in `naive`, one file per module of eosim."""
