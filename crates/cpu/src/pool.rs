//! One set of threads for all kernels, so that the machine is never oversubscribed.
//!
//! A kernel takes some microseconds and a step of a model has hundreds, so waking must cost less than a
//! microsecond: workers spin for some tens of microseconds after their last job, then park. The calling thread
//! works too, and never waits for a worker that did not join. Tasks are handed out one at a time: a thread that
//! is descheduled holds up its own task only. Nothing here decides what is computed, only who computes it.

use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::{JoinHandle, Thread};

use parking_lot::Mutex;

use super::Isa;
use super::isa::Available;
use super::memory::{Arena, Scratch};

/// Spins before a worker parks: some tens of microseconds, longer than the gap between two kernels of a step.
const SPINS_BEFORE_PARKING: u32 = 2_000;

/// Mask of [`Shared::state`]: the low bits count workers inside the job.
const INSIDE: u64 = 0xffff;
/// Flag of [`Shared::state`]: workers may join.
const OPEN: u64 = 1 << 16;
/// Increment of [`Shared::state`]: one job further.
const EPOCH: u64 = 1 << 17;

thread_local! {
    /// This thread is inside a job: a nested one runs on this thread alone.
    static BUSY: Cell<bool> = const { Cell::new(false) };
}

/// Function of each participant of a job: its index (0 is the caller) and its own workspace.
type Body<'a> = dyn Fn(usize, &mut Scratch) + Sync + 'a;

/// Threads that live as long as the pool, and the instruction set that kernels use on it.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<Worker>,
    /// Held during a job: one at a time.
    caller: Mutex<Scratch>,
    isa: Available,
    arena: Arena,
}

struct Worker {
    handle: Option<JoinHandle<()>>,
    thread: Thread,
}

struct Shared {
    /// Epoch, whether open, workers inside.
    state: AtomicU64,
    /// Written by the caller only while the state is closed with no worker inside.
    job: UnsafeCell<Option<Job>>,
    /// One a worker: it sleeps, or is about to.
    parked: Box<[AtomicBool]>,
    caller_parked: AtomicBool,
    stopping: AtomicBool,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

struct Job {
    body: *const Body<'static>,
    caller: Thread,
}

// SAFETY: `job` is written only while no worker is inside and none can join (see `Pool::participate`), and read
// only between joining and leaving; the body behind the pointer is `Sync`.
unsafe impl Sync for Shared {}
// SAFETY: as above; the raw pointer is never freed through this type.
unsafe impl Send for Shared {}

impl Pool {
    /// `threads` in all, the caller's included, with the instruction set of [`Isa::detect`].
    ///
    /// # Panics
    /// If `threads` is 0, or the system refuses a thread; as [`Isa::detect`].
    pub fn new(threads: usize) -> Pool {
        Pool::with_isa(threads, Isa::detect())
    }

    /// As [`Pool::new`], with an instruction set of the caller's choice.
    ///
    /// # Panics
    /// Also if this processor does not have `isa`.
    pub fn with_isa(threads: usize, isa: Isa) -> Pool {
        assert!(threads > 0, "a pool of 0 threads cannot work");
        let isa = Available::new(isa);
        let shared = Arc::new(Shared {
            state: AtomicU64::new(0),
            job: UnsafeCell::new(None),
            parked: (1..threads).map(|_| AtomicBool::new(false)).collect(),
            caller_parked: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            panic: Mutex::new(None),
        });
        let workers = (1..threads)
            .map(|index| {
                let shared = Arc::clone(&shared);
                let handle = std::thread::Builder::new()
                    .name(format!("kernel-{index}"))
                    .spawn(move || shared.work(index))
                    .expect("the system refused a thread for the kernel pool");
                Worker { thread: handle.thread().clone(), handle: Some(handle) }
            })
            .collect();
        Pool { shared, workers, caller: Mutex::new(Scratch::default()), isa, arena: Arena::default() }
    }

    /// Threads that work, the caller's included.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// The instruction set that kernels use on this pool.
    pub fn isa(&self) -> Isa {
        self.isa.isa()
    }

    /// As [`Pool::isa`], with the proof that this processor has it.
    pub(super) fn available(&self) -> Available {
        self.isa
    }

    /// Arena for packed matrices.
    pub(super) fn arena(&self) -> &Arena {
        &self.arena
    }

    /// Runs `task(0..tasks)`, each once, and returns when all are done. A call from inside a task runs on that
    /// thread alone. A panic of a task reaches the caller; tasks not yet begun are then left out.
    pub fn run(&self, tasks: usize, task: impl Fn(usize) + Sync) {
        self.run_with_scratch(tasks, |index, _| task(index));
    }

    /// Cuts `0..count` into ranges of about `grain` or more, a few for each thread, and runs `task` on each.
    pub(super) fn run_ranges(&self, count: usize, grain: usize, task: impl Fn(Range<usize>) + Sync) {
        let most = if self.workers.is_empty() { 1 } else { 4 * self.threads() };
        let tasks = (count / grain.max(1)).clamp(1, most);
        self.run(tasks, |index| task(index * count / tasks..(index + 1) * count / tasks));
    }

    /// As [`Pool::run`], each task with the workspace of the thread that it happens to run on.
    pub(super) fn run_with_scratch(&self, tasks: usize, task: impl Fn(usize, &mut Scratch) + Sync) {
        let next = AtomicUsize::new(0);
        self.participate(tasks, &|_, scratch: &mut Scratch| {
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                if index >= tasks {
                    break;
                }
                // On a panic no worker begins another task.
                let guard = OnPanic(|| next.store(tasks, Ordering::Relaxed));
                task(index, scratch);
                std::mem::forget(guard);
            }
        });
    }

    /// Runs `body` on the calling thread and on up to `wanted - 1` workers that join in time, at most once each.
    /// The body itself divides the work, and must do all of it if none joins.
    pub(super) fn participate(&self, wanted: usize, body: &Body<'_>) {
        if BUSY.get() {
            return body(0, &mut Scratch::default());
        }
        let mut scratch = self.caller.lock();
        let _busy = Busy::enter();
        if self.workers.is_empty() || wanted <= 1 {
            return body(0, &mut scratch);
        }
        // SAFETY: the lifetime is erased only until `close` returns, which is after the last use of the body.
        let erased: *const Body<'static> = unsafe { std::mem::transmute::<*const Body<'_>, _>(body) };
        self.shared.open(Job { body: erased, caller: std::thread::current() });
        for (worker, parked) in self.workers.iter().zip(&self.shared.parked).take(wanted - 1) {
            if parked.load(Ordering::SeqCst) && parked.swap(false, Ordering::SeqCst) {
                worker.thread.unpark();
            }
        }
        let outcome = catch_unwind(AssertUnwindSafe(|| body(0, &mut scratch)));
        self.shared.close();
        drop(scratch);
        let panicked = self.shared.panic.lock().take();
        if let Some(payload) = outcome.err().or(panicked) {
            resume_unwind(payload);
        }
    }
}

impl Shared {
    fn open(&self, job: Job) {
        // SAFETY: the caller's lock is held and the state is closed with no worker inside: no other thread looks at the job.
        unsafe { *self.job.get() = Some(job) };
        let state = self.state.load(Ordering::Relaxed);
        debug_assert_eq!(state & (OPEN | INSIDE), 0);
        self.state.store((state + EPOCH) | OPEN, Ordering::SeqCst);
    }

    /// Lets no more workers in, and waits for those inside.
    fn close(&self) {
        let mut state = self.state.fetch_and(!OPEN, Ordering::SeqCst) & !OPEN;
        let mut spins = 0;
        while state & INSIDE != 0 {
            if spins < SPINS_BEFORE_PARKING {
                spins += 1;
                std::hint::spin_loop();
            } else {
                self.caller_parked.store(true, Ordering::SeqCst);
                if self.state.load(Ordering::SeqCst) & INSIDE != 0 {
                    std::thread::park();
                }
                self.caller_parked.store(false, Ordering::SeqCst);
            }
            state = self.state.load(Ordering::SeqCst);
        }
    }

    /// A worker's life.
    fn work(&self, index: usize) {
        BUSY.set(true);
        let mut scratch = Scratch::default();
        let mut last_epoch = 0;
        let mut spins = 0;
        loop {
            let state = self.state.load(Ordering::SeqCst);
            let epoch = state & !(OPEN | INSIDE);
            if state & OPEN != 0 && epoch != last_epoch {
                if self.state.compare_exchange(state, state + 1, Ordering::SeqCst, Ordering::SeqCst).is_ok() {
                    last_epoch = epoch;
                    spins = 0;
                    self.take_part(index, &mut scratch);
                }
                continue;
            }
            if self.stopping.load(Ordering::SeqCst) {
                return;
            }
            if spins < SPINS_BEFORE_PARKING {
                spins += 1;
                std::hint::spin_loop();
                continue;
            }
            let parked = &self.parked[index - 1];
            parked.store(true, Ordering::SeqCst);
            let state = self.state.load(Ordering::SeqCst);
            let nothing_new = state & OPEN == 0 || state & !(OPEN | INSIDE) == last_epoch;
            if nothing_new && !self.stopping.load(Ordering::SeqCst) {
                std::thread::park();
            }
            parked.store(false, Ordering::SeqCst);
            spins = 0;
        }
    }

    /// Between joining and leaving.
    fn take_part(&self, index: usize, scratch: &mut Scratch) {
        // SAFETY: this worker is counted as inside, so the caller neither replaces the job nor returns from
        // `participate`, which keeps the body alive.
        let (body, caller) = unsafe {
            let job = (*self.job.get()).as_ref().expect("an open state has a job");
            (&*job.body, job.caller.clone())
        };
        if let Err(payload) = catch_unwind(AssertUnwindSafe(|| body(index, scratch))) {
            self.panic.lock().get_or_insert(payload);
        }
        let before = self.state.fetch_sub(1, Ordering::SeqCst);
        if before & OPEN == 0 && before & INSIDE == 1 && self.caller_parked.load(Ordering::SeqCst) {
            caller.unpark();
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        for worker in &mut self.workers {
            worker.thread.unpark();
            if let Some(handle) = worker.handle.take() {
                // A worker catches every panic of a body: there is nothing to hear from it.
                let _ = handle.join();
            }
        }
    }
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pool({} threads, {})", self.threads(), self.isa().name())
    }
}

/// Marks this thread as inside a job.
struct Busy;

impl Busy {
    fn enter() -> Busy {
        BUSY.set(true);
        Busy
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        BUSY.set(false);
    }
}

/// Runs when dropped, that is on a panic: it is forgotten otherwise.
struct OnPanic<F: Fn()>(F);

impl<F: Fn()> Drop for OnPanic<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

/// Threads that this process may keep busy: the smaller of its CPU quota (cgroup v1 and v2, whole processors,
/// at least 1) and its affinity mask, as [`std::thread::available_parallelism`] finds them.
pub fn cpu_quota_threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}
