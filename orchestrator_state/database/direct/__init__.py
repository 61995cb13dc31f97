"""The two measured roads, the commit of a step and the load of a state: past SQLAlchemy, unless somebody listens."""
