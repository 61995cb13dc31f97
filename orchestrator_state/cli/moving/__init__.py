"""The commands that take runs from one database to another: `export`, `import`, `backup`."""
