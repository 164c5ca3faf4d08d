//! What survives a restart: the journal of the mesh's durable lanes, in SQLite.
