//! Products whose rows do not depend on each other: always of as many rows, so that cuBLAS, which chooses by shape, always chooses the
//! same kernel.
//!
//! The last tile of a step is filled up with whatever lies behind its rows. That a row's result does not depend on its place among the
//! rows of a tile is no promise of cuBLAS: it is tried once for each shape, on the GPU at hand.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

use candle_core::{DType, Device, Result, Tensor, WithDType, bail};
use half::{bf16, f16};

use super::device_slice::DeviceSlice;
use super::gpu::Gpu;
use super::product::{ProductAt, ProductOut};
use flashjob_model::Dtype;

/// Rows of a product. A GPU of 16-bit weights reads them in the time in which it multiplies them by about as many rows (an H100: 796
/// TFLOP/s and 2.98 TB/s as measured, 267 rows): fewer would read weights more often, more would compute rows for nothing.
pub const ROW_TILE: usize = 256;

/// Shapes of products whose rows were seen to be alike.
#[derive(Default)]
pub struct RowTiles(Mutex<HashSet<Shape>>);

/// Rows of weights, their entries, and whether single precision comes out, which is added to.
type Shape = ([usize; 2], bool, bool);

impl RowTiles {
    /// Queues a product as [`Gpu::product`] does, a tile of rows after the other; of `x` and `y` there are whole tiles.
    ///
    /// # Errors
    /// As there, and where rows are not alike.
    pub fn product(&self, gpu: &Gpu, rows: usize, [out, in_]: [usize; 2], at: ProductAt<'_>) -> Result<()> {
        self.check(gpu, [out, in_], at)?;
        for first in (0..rows).step_by(ROW_TILE) {
            let tile = ProductAt { x: at.x.from(first * in_)?, y: at.y.from(first * out)?, ..at };
            gpu.product(ROW_TILE, [out, in_], tile)?;
        }
        Ok(())
    }

    /// Multiplies equal rows when a shape is first seen: the results must be equal, too.
    fn check(&self, gpu: &Gpu, shape: [usize; 2], at: ProductAt<'_>) -> Result<()> {
        let is_wide = matches!(at.y, ProductOut::Wide(_));
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let [out, in_] = shape;
        // Nothing is recorded before it was computed once.
        if out == 0 || !seen.insert((shape, is_wide, at.add)) {
            return Ok(());
        }
        let device = gpu.device();
        // Of both signs, and of magnitudes that make the order of sums show.
        let entry =
            |index: usize| ((index * 7919 % 1013) as f32 - 506.0) * if index.is_multiple_of(5) { 1.0 } else { 1e-2 };
        let row = (0..in_).map(entry);
        let x = match gpu.dtype() {
            Dtype::F16 => equal_rows(row.map(f16::from_f32).collect(), &device)?,
            _ => equal_rows(row.map(bf16::from_f32).collect(), &device)?,
        };
        let y = Tensor::zeros((ROW_TILE, out), if is_wide { DType::F32 } else { gpu.dtype().into() }, &device)?;
        gpu.product(ROW_TILE, shape, ProductAt { x: DeviceSlice::of(&x)?, y: ProductOut::of(&y)?, ..at })?;
        let different = match y.dtype() {
            DType::F32 => different_row(&y, f32::to_bits),
            DType::F16 => different_row(&y, f16::to_bits),
            _ => different_row(&y, bf16::to_bits),
        };
        match different? {
            None => Ok(()),
            Some(place) => bail!(
                "deterministic=true cannot be had on this GPU: of {ROW_TILE} equal rows, row {place} of their product with weights \
                 [{out}, {in_}] differs from the first"
            ),
        }
    }
}

/// As many of `row` as a tile has.
fn equal_rows<T: WithDType>(row: Vec<T>, device: &Device) -> Result<Tensor> {
    let width = row.len();
    Tensor::from_vec(row.repeat(ROW_TILE), (ROW_TILE, width), device)
}

/// The first row that has other bits than the first one.
fn different_row<T: WithDType, B: PartialEq>(rows: &Tensor, bits: fn(T) -> B) -> Result<Option<usize>> {
    let rows = rows.to_vec2::<T>()?;
    let is_first = |row: &Vec<T>| row.iter().zip(&rows[0]).all(|(&one, &other)| bits(one) == bits(other));
    Ok(rows.iter().position(|row| !is_first(row)))
}
