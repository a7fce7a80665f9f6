//! One device's session: packets, verdicts and outcomes in, [`Effect`]s out. The only place that knows its state.

pub mod effect;

pub use effect::Effect;
