"""Other memory libraries' names for localmem, so that programs written for them run by changing the import."""
