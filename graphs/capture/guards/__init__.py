"""What a captured step is valid for: the call, the modules' own state, values it branched on."""
