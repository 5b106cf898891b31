//! Figures as plots: inline SVG with a title, a description and a table of the same data, without scripts.
//!
//! Functions are pure, from typed data to HTML, and each text is escaped ([`escape()`]). Colours are classes whose values are in
//! [`STYLE`]: a page includes it once, for light, dark and print. Number of points is bounded, however many are given. The
//! crate does not know where figures come from.

mod bars;
mod distribution;
mod drawing;
mod escape;
mod figure;
mod frame;
mod heat_map;
mod line;
mod palette;
mod roofline;
mod scale;
mod scatter;
mod thin;
mod unit;

pub use bars::Bars;
pub use distribution::{DistributionChart, Sample};
pub use escape::escape;
pub use figure::Figure;
pub use frame::Axis;
pub use heat_map::HeatMap;
pub use line::{Line, LineChart};
pub use palette::STYLE;
pub use roofline::{Roof, RooflineChart, StepGroup, StepPoint};
pub use scatter::{Better, Scatter, ScatterPoint, pareto_front};
pub use unit::Unit;
