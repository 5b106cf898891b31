//! Runs, params, metrics and artifacts become MLflow REST calls, with a spool on disk for when the server is away.
//!
//! Tracking never slows a run and never loses it. This room does not know the engine.
