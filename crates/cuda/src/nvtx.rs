//! NVTX ranges: phases, steps and operations by name, for profilers such as Nsight Systems.
//!
//! NVTX 3 is a set of C headers and no library (`nvtxDetail/nvtxInit.h`, `nvtxTypes.h`): a profiler names a library of its own in
//! `NVTX_INJECTION64_PATH`, which asks the program for tables of places and puts its functions there. This file has those tables. Without
//! a profiler a range costs the look at one variable. No profiler of NVIDIA's has been attached to it yet: the tests' one follows the headers.

use std::ffi::{CString, c_char, c_int, c_uint, c_void};
use std::mem::transmute;
use std::ptr::{null, null_mut};
use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use libloading::Library;

use flashjob_engine::Operation;

/// Names the profiler's library.
const VARIABLE: &str = "NVTX_INJECTION64_PATH";

/// A place for one function of a profiler.
type Place = AtomicPtr<c_void>;

/// Places of the modules, by the numbers of `NvtxCallbackModule`; the first entry of each has no meaning. Lengths are those of
/// `NvtxCallbackIdCore` and the like.
static CORE: [Place; 16] = [const { AtomicPtr::new(null_mut()) }; 16];
static CUDA: [Place; 9] = [const { AtomicPtr::new(null_mut()) }; 9];
static OPENCL: [Place; 15] = [const { AtomicPtr::new(null_mut()) }; 15];
static CUDART: [Place; 7] = [const { AtomicPtr::new(null_mut()) }; 7];
static CORE2: [Place; 16] = [const { AtomicPtr::new(null_mut()) }; 16];
static SYNC: [Place; 7] = [const { AtomicPtr::new(null_mut()) }; 7];

/// `NvtxCallbackIdCore` of the functions that are called here.
const RANGE_START_A: usize = 5;
const RANGE_END: usize = 7;
const RANGE_PUSH_A: usize = 9;
const RANGE_POP: usize = 11;

/// Addresses of places, as a module's table lists them, with a null at each end.
struct Table([*const Place; 17]);

// SAFETY: the addresses are those of statics, whose content is atomic.
unsafe impl Send for Table {}
// SAFETY: as above.
unsafe impl Sync for Table {}

impl Table {
    fn of(places: &'static [Place]) -> Self {
        let mut addresses = [null(); 17];
        for (address, place) in addresses.iter_mut().zip(places).skip(1) {
            *address = place;
        }
        Self(addresses)
    }
}

/// Tables by `NvtxCallbackModule`, and the number of their entries.
fn table(module: c_int) -> Option<(&'static Table, usize)> {
    static TABLES: OnceLock<[Table; 6]> = OnceLock::new();
    let modules: [&'static [Place]; 6] = [&CORE, &CUDA, &OPENCL, &CUDART, &CORE2, &SYNC];
    let tables = TABLES.get_or_init(|| modules.map(Table::of));
    let index = usize::try_from(module).ok()?.checked_sub(1)?;
    Some((tables.get(index)?, modules.get(index)?.len()))
}

/// `NvtxExportTableCallbacks`.
#[repr(C)]
struct Callbacks {
    struct_size: usize,
    module_function_table: extern "C" fn(c_int, *mut *const *const Place, *mut c_uint) -> c_int,
}

/// `NvtxExportTableVersionInfo`.
#[repr(C)]
struct VersionInfo {
    struct_size: usize,
    version: u32,
    reserved: u32,
    set_injection_version: extern "C" fn(u32),
}

extern "C" fn module_function_table(module: c_int, out: *mut *const *const Place, size: *mut c_uint) -> c_int {
    let Some((table, count)) = table(module) else { return 0 };
    if !size.is_null() {
        // SAFETY: the profiler's, which it wants to be written.
        unsafe { *size = count as c_uint };
    }
    if !out.is_null() {
        // SAFETY: as above.
        unsafe { *out = table.0.as_ptr() };
    }
    1
}

extern "C" fn set_injection_version(_version: u32) {}

static CALLBACKS: Callbacks = Callbacks { struct_size: size_of::<Callbacks>(), module_function_table };
static VERSION: VersionInfo =
    VersionInfo { struct_size: size_of::<VersionInfo>(), version: 3, reserved: 0, set_injection_version };

/// `nvtxGetExportTable`, by `NvtxExportTableID`.
extern "C" fn export_table(id: u32) -> *const c_void {
    match id {
        1 => (&raw const CALLBACKS).cast(),
        3 => (&raw const VERSION).cast(),
        _ => null(),
    }
}

/// Loads the library that a profiler names, once.
fn attached() -> bool {
    static ATTACHED: OnceLock<bool> = OnceLock::new();
    *ATTACHED.get_or_init(|| std::env::var_os(VARIABLE).is_some_and(|path| attach(&path)))
}

fn attach(path: &std::ffi::OsStr) -> bool {
    type Initialize = unsafe extern "C" fn(extern "C" fn(u32) -> *const c_void) -> c_int;
    // SAFETY: whoever starts the program names a profiler's library, as they might in LD_PRELOAD.
    let Ok(library) = (unsafe { Library::new(path) }) else { return false };
    // SAFETY: a library of that protocol has this function of this type.
    let initialized = match unsafe { library.get::<Initialize>(b"InitializeInjectionNvtx2\0") } {
        // SAFETY: the tables are as the headers describe them.
        Ok(initialize) => unsafe { initialize(export_table) != 0 },
        Err(_) => false,
    };
    // Its functions stay in the tables for as long as the program runs.
    std::mem::forget(library);
    initialized
}

/// The function that a profiler has put into place `index`.
fn function(index: usize) -> Option<*mut c_void> {
    let function = CORE[index].load(Ordering::Relaxed);
    (attached() && !function.is_null()).then_some(function)
}

/// Begins a range of this thread, which [`pop`] ends.
fn push(name: &CString) {
    if let Some(function) = function(RANGE_PUSH_A) {
        // SAFETY: the type of `nvtxRangePushA`.
        let push = unsafe { transmute::<*mut c_void, unsafe extern "C" fn(*const c_char) -> c_int>(function) };
        // SAFETY: the name lives as long as the call.
        unsafe { push(name.as_ptr()) };
    }
}

/// Ends the range that this thread began last.
pub fn pop() {
    if let Some(function) = function(RANGE_POP) {
        // SAFETY: the type of `nvtxRangePop`.
        let pop = unsafe { transmute::<*mut c_void, unsafe extern "C" fn() -> c_int>(function) };
        // SAFETY: it takes nothing.
        unsafe { pop() };
    }
}

/// Begins the range of an operation, which [`pop`] ends.
pub fn push_operation(operation: Operation) {
    static NAMES: OnceLock<[CString; Operation::ALL.len()]> = OnceLock::new();
    if attached() {
        let names = NAMES.get_or_init(|| Operation::ALL.map(|operation| c_string(operation.name())));
        push(&names[operation as usize]);
    }
}

/// Begins the range of a step of so many tokens and sequences, which [`pop`] ends.
pub fn push_step(tokens: usize, sequences: usize) {
    if attached() {
        push(&c_string(&format!("step: {tokens} tokens, {sequences} sequences")));
    }
}

/// Ends the range of the phase before, and begins that of the phase `name`. Threads have it in common.
pub fn show_phase(name: &str) {
    static OPEN: Mutex<Option<u64>> = Mutex::new(None);
    if !attached() {
        return;
    }
    let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((range, end)) = open.take().zip(function(RANGE_END)) {
        // SAFETY: the type of `nvtxRangeEnd`.
        let end = unsafe { transmute::<*mut c_void, unsafe extern "C" fn(u64)>(end) };
        // SAFETY: the range was begun, and is ended once.
        unsafe { end(range) };
    }
    if let Some(start) = function(RANGE_START_A) {
        let name = c_string(name);
        // SAFETY: the type of `nvtxRangeStartA`.
        let start = unsafe { transmute::<*mut c_void, unsafe extern "C" fn(*const c_char) -> u64>(start) };
        // SAFETY: the name lives as long as the call.
        *open = Some(unsafe { start(name.as_ptr()) });
    }
}

fn c_string(name: &str) -> CString {
    // Names are this program's own, without zeros.
    CString::new(name).unwrap_or_default()
}
