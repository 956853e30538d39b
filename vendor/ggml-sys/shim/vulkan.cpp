// What stands between ggml's Vulkan backend and Vulkan: the account of what it allocates, and a way round an error of Mesa's.
//
// ggml looks every function of Vulkan up by name, through vkGetInstanceProcAddr; its sources are compiled with
// ph_vkGetInstanceProcAddr in place of that (see build/vulkan.rs), which hands out the stand-ins below for a few functions.

#include "account.h"

#include <vulkan/vulkan_core.h>

#include <atomic>
#include <cstring>
#include <mutex>
#include <unordered_map>
#include <vector>

namespace {

struct allocation {
    int    memory;
    size_t size;
};

struct state {
    std::mutex                                                   mutex;
    VkInstance                                                   instance = VK_NULL_HANDLE;
    std::unordered_map<VkDevice, VkPhysicalDeviceMemoryProperties> devices;
    std::unordered_map<VkDeviceMemory, allocation>               allocations;
    std::atomic<bool>                                            software{false}; // whether a device is the processor
    std::atomic<unsigned>                                        features{0};     // of all devices together
};

state & vulkan() {
    static state * const it = new state; // never destroyed: memory is freed while the process ends
    return *it;
}

template <typename F> F real(const char * name) {
    return reinterpret_cast<F>(vkGetInstanceProcAddr(vulkan().instance, name));
}

// What ggml's choice of kernels depends on: PH_VULKAN_* of Rust's VulkanFeatures.
unsigned features_of(const VkDeviceCreateInfo * info, uint32_t vendor) {
    static const char * const extensions[] = { "VK_KHR_cooperative_matrix", "VK_NV_cooperative_matrix2",
                                               "VK_KHR_shader_integer_dot_product" };
    unsigned features = 0;
    for (uint32_t i = 0; i < info->enabledExtensionCount; i++) {
        for (unsigned bit = 0; bit < 3; bit++) {
            features |= unsigned(strcmp(info->ppEnabledExtensionNames[i], extensions[bit]) == 0) << bit;
        }
    }
    // NVIDIA's, AMD's and Intel's are those whose number of cores ggml finds out.
    return features | unsigned(vendor == 0x10de || vendor == 0x1002 || vendor == 0x8086) << 3;
}

VKAPI_ATTR VkResult VKAPI_CALL create_device(VkPhysicalDevice physical, const VkDeviceCreateInfo * info,
                                             const VkAllocationCallbacks * callbacks, VkDevice * device) {
    const VkResult result = real<PFN_vkCreateDevice>("vkCreateDevice")(physical, info, callbacks, device);
    if (result == VK_SUCCESS) {
        VkPhysicalDeviceMemoryProperties properties;
        real<PFN_vkGetPhysicalDeviceMemoryProperties>("vkGetPhysicalDeviceMemoryProperties")(physical, &properties);
        VkPhysicalDeviceProperties about;
        real<PFN_vkGetPhysicalDeviceProperties>("vkGetPhysicalDeviceProperties")(physical, &about);
        if (about.deviceType == VK_PHYSICAL_DEVICE_TYPE_CPU) {
            vulkan().software = true;
        }
        vulkan().features |= features_of(info, about.vendorID);
        std::lock_guard<std::mutex> lock(vulkan().mutex);
        vulkan().devices[*device] = properties;
    }
    return result;
}

// Whether the memory is the caller's already and only made known to the device.
bool is_import(const VkMemoryAllocateInfo * info) {
    for (auto next = static_cast<const VkBaseInStructure *>(info->pNext); next; next = next->pNext) {
        if (next->sType == VK_STRUCTURE_TYPE_IMPORT_MEMORY_HOST_POINTER_INFO_EXT) {
            return true;
        }
    }
    return false;
}

int memory_of(VkDevice device, uint32_t type) {
    std::lock_guard<std::mutex> lock(vulkan().mutex);
    const VkPhysicalDeviceMemoryProperties & properties = vulkan().devices[device];
    const VkMemoryHeap & heap = properties.memoryHeaps[properties.memoryTypes[type].heapIndex];
    return heap.flags & VK_MEMORY_HEAP_DEVICE_LOCAL_BIT ? PH_MEMORY_DEVICE : PH_MEMORY_PINNED;
}

VKAPI_ATTR VkResult VKAPI_CALL allocate_memory(VkDevice device, const VkMemoryAllocateInfo * info,
                                               const VkAllocationCallbacks * callbacks, VkDeviceMemory * memory) {
    static const auto allocate = real<PFN_vkAllocateMemory>("vkAllocateMemory");
    if (is_import(info)) {
        return allocate(device, info, callbacks, memory);
    }
    const int    kind = memory_of(device, info->memoryTypeIndex);
    const size_t size = static_cast<size_t>(info->allocationSize);
    if (ph_account_refuses(kind, size)) {
        return VK_ERROR_OUT_OF_DEVICE_MEMORY;
    }
    const VkResult result = allocate(device, info, callbacks, memory);
    if (result != VK_SUCCESS) {
        ph_account_failed(kind, size);
        return result;
    }
    ph_account_enter(kind, size);
    std::lock_guard<std::mutex> lock(vulkan().mutex);
    vulkan().allocations[*memory] = { kind, size };
    return result;
}

VKAPI_ATTR void VKAPI_CALL free_memory(VkDevice device, VkDeviceMemory memory, const VkAllocationCallbacks * callbacks) {
    static const auto release = real<PFN_vkFreeMemory>("vkFreeMemory");
    allocation freed = { PH_MEMORY_DEVICE, 0 };
    {
        std::lock_guard<std::mutex> lock(vulkan().mutex);
        const auto found = vulkan().allocations.find(memory);
        if (found != vulkan().allocations.end()) {
            freed = found->second;
            vulkan().allocations.erase(found);
        }
    }
    release(device, memory, callbacks);
    ph_account_leave(freed.memory, freed.size);
}

// ggml's sets have this many storage buffers, of which each shader uses the first few: MAX_PARAMETER_COUNT.
constexpr uint32_t BINDINGS = 12;

// Mesa's software device (seen with 22.3) binds every buffer of a set, used or not, where it was freed long ago as well, and
// so reads and writes memory that is not its own. There, bindings that no one uses get a buffer that somebody does.
VKAPI_ATTR void VKAPI_CALL update_descriptor_sets(VkDevice device, uint32_t count, const VkWriteDescriptorSet * writes,
                                                  uint32_t copies, const VkCopyDescriptorSet * copied) {
    static const auto update = real<PFN_vkUpdateDescriptorSets>("vkUpdateDescriptorSets");
    update(device, count, writes, copies, copied);
    if (!vulkan().software) {
        return;
    }
    for (uint32_t i = 0; i < count; i++) {
        const uint32_t used = writes[i].descriptorCount;
        if (writes[i].dstBinding != 0 || used == 0 || used >= BINDINGS || !writes[i].pBufferInfo) {
            continue;
        }
        const std::vector<VkDescriptorBufferInfo> filler(BINDINGS - used, writes[i].pBufferInfo[0]);
        VkWriteDescriptorSet rest = writes[i];
        rest.dstBinding      = used;
        rest.descriptorCount = BINDINGS - used;
        rest.pBufferInfo     = filler.data();
        update(device, 1, &rest, 0, nullptr);
    }
}

} // namespace

extern "C" PFN_vkVoidFunction ph_vkGetInstanceProcAddr(VkInstance instance, const char * name) {
    if (instance != VK_NULL_HANDLE) {
        vulkan().instance = instance;
        if (strcmp(name, "vkCreateDevice") == 0) {
            return reinterpret_cast<PFN_vkVoidFunction>(create_device);
        }
        if (strcmp(name, "vkAllocateMemory") == 0) {
            return reinterpret_cast<PFN_vkVoidFunction>(allocate_memory);
        }
        if (strcmp(name, "vkFreeMemory") == 0) {
            return reinterpret_cast<PFN_vkVoidFunction>(free_memory);
        }
        if (strcmp(name, "vkUpdateDescriptorSets") == 0) {
            return reinterpret_cast<PFN_vkVoidFunction>(update_descriptor_sets);
        }
    }
    return vkGetInstanceProcAddr(instance, name);
}

// What devices that ggml has opened so far can do, as bits: see features_of.
extern "C" unsigned ph_vulkan_features() {
    return vulkan().features;
}
