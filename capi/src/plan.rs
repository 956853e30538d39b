//! `pinhole_plan`: what a request will have on the device, and when.

use std::ffi::c_char;
use std::mem::{offset_of, size_of};

use pinhole::plan::ComponentPlan;

use crate::error::{Error, Failure};
use crate::options::{self, versioned};
use crate::request::{Read, Request};
use crate::session::Session;
use crate::{entry, handle, progress, text};

/// `pinhole_plan`
pub struct Plan(pinhole::plan::Plan);

/// `pinhole_plan_info`
#[derive(Clone, Copy)]
#[repr(C)]
#[allow(missing_docs, reason = "the header says what they are")]
pub struct PlanInfo {
    pub struct_size: usize,
    pub peak_bytes: u64,
    pub limit_bytes: u64,
    pub all_resident: i32,
    pub reserved: i32,
    pub components: usize,
}

const NOTHING: PlanInfo =
    PlanInfo { struct_size: 0, peak_bytes: 0, limit_bytes: 0, all_resident: 0, reserved: 0, components: 0 };
versioned!(PlanInfo, "pinhole_plan_info", size_of::<PlanInfo>(), NOTHING);

/// `pinhole_plan_component`
#[derive(Clone, Copy)]
#[repr(C)]
#[allow(missing_docs, reason = "the header says what they are")]
pub struct PlanComponent {
    pub struct_size: usize,
    pub name: [c_char; 32],
    pub phase: i32,
    pub stages: i32,
    pub streamed_stages: i32,
    pub slots: i32,
    pub peak_bytes: u64,
    pub weight_bytes: u64,
    pub slot_bytes: u64,
    pub other_weight_bytes: u64,
    pub port_bytes: u64,
    pub activation_bytes: u64,
    pub scratch_bytes: u64,
    pub overhead_bytes: u64,
    pub mapped_bytes: u64,
    pub moved_once_bytes: u64,
    pub moved_each_step_bytes: u64,
    pub parts_each_step: i32,
    pub pictures_at_once: i32,
    pub device: i32,
    pub reserved: i32,
}

const NO_COMPONENT: PlanComponent = PlanComponent {
    struct_size: 0,
    name: [0; 32],
    phase: 0,
    stages: 0,
    streamed_stages: 0,
    slots: 0,
    peak_bytes: 0,
    weight_bytes: 0,
    slot_bytes: 0,
    other_weight_bytes: 0,
    port_bytes: 0,
    activation_bytes: 0,
    scratch_bytes: 0,
    overhead_bytes: 0,
    mapped_bytes: 0,
    moved_once_bytes: 0,
    moved_each_step_bytes: 0,
    parts_each_step: 0,
    pictures_at_once: 0,
    device: 0,
    reserved: 0,
};
versioned!(PlanComponent, "pinhole_plan_component", offset_of!(PlanComponent, parts_each_step), NO_COMPONENT);

fn component((device, plan): (usize, &ComponentPlan)) -> PlanComponent {
    let parts = &plan.parts;
    PlanComponent {
        name: text::fixed(plan.name),
        phase: progress::number(plan.phase),
        stages: plan.stages() as i32,
        streamed_stages: plan.streamed() as i32,
        slots: plan.placement.slots as i32,
        peak_bytes: parts.total() as u64,
        weight_bytes: parts.weights as u64,
        slot_bytes: parts.slots as u64,
        other_weight_bytes: parts.others as u64,
        port_bytes: parts.ports as u64,
        activation_bytes: parts.activations as u64,
        scratch_bytes: parts.scratch as u64,
        overhead_bytes: parts.overhead as u64,
        mapped_bytes: plan.mapped as u64,
        moved_once_bytes: plan.moved_once as u64,
        moved_each_step_bytes: plan.moved_each_step as u64,
        parts_each_step: plan.batch.parts_each_step() as i32,
        pictures_at_once: plan.batch.pictures_at_once() as i32,
        device: device as i32,
        ..NO_COMPONENT
    }
}

/// Those of all devices, each with the number of its device.
fn components(plan: &pinhole::plan::Plan) -> impl Iterator<Item = (usize, &ComponentPlan)> {
    let devices = plan.devices().enumerate();
    devices.flat_map(|(device, plan)| plan.components.iter().map(move |component| (device, component)))
}

/// See the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pinhole_plan_new(
    session: *mut Session,
    request: *const Request,
    out: *mut *mut Plan,
    error: *mut *mut Error,
) -> i32 {
    let work = || {
        // SAFETY: the header's contract.
        let (session, Read { wanted, cancel, .. }) = unsafe {
            handle::clear(out, "out")?;
            (handle::get(session.cast_const(), "session")?, Request::read(request)?)
        };
        let plan = session.with(cancel, |pipeline| Ok(pipeline.plan(&wanted)?))?;
        // SAFETY: the header's contract.
        unsafe { handle::give(out, Plan(plan)) }
    };
    // SAFETY: the header's contract.
    unsafe { entry::call(error, work) }
}

/// See the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pinhole_plan_get_info(plan: *const Plan, info: *mut PlanInfo, error: *mut *mut Error) -> i32 {
    let work = || {
        // SAFETY: the header's contract.
        let Plan(plan) = unsafe { handle::get(plan, "plan") }?;
        let value = PlanInfo {
            peak_bytes: plan.peak() as u64,
            limit_bytes: plan.limit.unwrap_or(0) as u64,
            all_resident: i32::from(plan.all_resident),
            components: components(plan).count(),
            ..NOTHING
        };
        // SAFETY: the header's contract.
        unsafe { options::write(info, value) }
    };
    // SAFETY: the header's contract.
    unsafe { entry::call(error, work) }
}

/// See the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pinhole_plan_get_component(
    plan: *const Plan,
    index: usize,
    out: *mut PlanComponent,
    error: *mut *mut Error,
) -> i32 {
    let work = || {
        // SAFETY: the header's contract.
        let Plan(plan) = unsafe { handle::get(plan, "plan") }?;
        let Some(found) = components(plan).nth(index) else {
            let count = components(plan).count();
            return Err(Failure::argument(format!("index: expected less than {count}, found {index}"), ""));
        };
        // SAFETY: the header's contract.
        unsafe { options::write(out, component(found)) }
    };
    // SAFETY: the header's contract.
    unsafe { entry::call(error, work) }
}

/// See the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pinhole_plan_free(plan: *mut Plan) {
    // SAFETY: the header's contract.
    entry::quietly(|| unsafe { handle::free(plan) });
}
