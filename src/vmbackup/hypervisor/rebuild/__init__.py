"""A guest's definition put right for another host: XML in, XML out."""
