/* A stand-in for MediaTek's Neuron adapter library: it accepts every model, records what it is asked, compiles nothing.
 *
 * With it, LiteRT's compiler plugin for MediaTek runs where the vendor's library is not, and shows which operators of
 * a graph the plugin itself takes. It says nothing of what the vendor's compiler takes.
 *
 *     cc -shared -fPIC standin.c -o libneuron_adapter.so
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct { int32_t type; uint32_t count; const uint32_t *dims; float scale; int32_t zero; } Operand;
typedef struct { int operations, operands; } Model;

static FILE *out(void) {
    static FILE *file;
    if (!file) {
        const char *path = getenv("ANDES_STANDIN_LOG");
        file = path ? fopen(path, "a") : NULL;
        if (!file) file = stderr;
        setvbuf(file, NULL, _IOLBF, 0);
    }
    return file;
}

int Neuron_getVersion(uint8_t *version) { version[0] = 9; version[1] = 0; version[2] = 3; return 0; }
int Neuron_getL1MemorySizeKb(uint32_t *size) { *size = 8192; return 0; }
int NeuronService_getNeuroPilotMagicNumber(int32_t *number) { *number = 900; return 0; }

int NeuronModel_create(Model **model) { *model = calloc(1, sizeof(Model)); fprintf(out(), "model\n"); return !*model; }
void NeuronModel_free(Model *model) { (void)model; }
int NeuronModel_finish(Model *model) { fprintf(out(), "finish %d\n", model->operations); return 0; }
int NeuronModel_setName(Model *model, const char *name) { (void)model; fprintf(out(), "name %s\n", name); return 0; }
int NeuronModel_addOperand(Model *model, const Operand *one) {
    fprintf(out(), "operand %d type %d scale %.9g\n", model->operands++, one->type, one->scale);
    return 0;
}
int NeuronModel_setOperandValue(Model *m, int32_t i, const void *data, size_t size) {
    (void)m; (void)data; fprintf(out(), "value %d bytes %zu\n", i, size); return 0;
}
int NeuronModel_setOperandSymmPerChannelQuantParams(Model *m, int32_t i, const void *p) {
    (void)m; (void)p; fprintf(out(), "channels %d\n", i); return 0;
}
int NeuronModel_setOperandPerChannelQuantParams(Model *m, int32_t i, const void *p) {
    (void)m; (void)p; fprintf(out(), "channels %d\n", i); return 0;
}
int NeuronModel_addOperation(Model *model, int32_t type, uint32_t ins, const uint32_t *in, uint32_t outs,
                             const uint32_t *to) {
    (void)ins; (void)in; (void)outs; (void)to;
    fprintf(out(), "operation %d type %d\n", model->operations++, type);
    return 0;
}
int NeuronModel_identifyInputsAndOutputs(Model *m, uint32_t ins, const uint32_t *in, uint32_t outs, const uint32_t *to) {
    (void)m; (void)in; (void)to; fprintf(out(), "ends %u %u\n", ins, outs); return 0;
}
int NeuronModel_getExtensionOperandType(Model *m, const char *e, uint16_t code, int32_t *type) {
    (void)m; fprintf(out(), "extension operand %s %u\n", e, code); *type = 10000 + code; return 0;
}
int NeuronModel_getExtensionOperationType(Model *m, const char *e, uint16_t code, int32_t *type) {
    (void)m; fprintf(out(), "extension operation %s %u\n", e, code); *type = 20000 + code; return 0;
}
int NeuronModel_relaxComputationFloat32toFloat16(Model *m, bool allow) {
    (void)m; fprintf(out(), "float16 %d\n", allow); return 0;
}
int NeuronModel_restoreFromCompiledNetwork(void **m, void **c, const void *data, size_t size) {
    (void)m; (void)c; (void)data; (void)size; return 1;
}

int NeuronCompilation_create(Model *model, void **made) { *made = model; return 0; }
int NeuronCompilation_createWithOptions(Model *model, void **made, const char *options) {
    fprintf(out(), "options %s\n", options ? options : ""); *made = model; return 0;
}
int NeuronCompilation_finish(void *c) { (void)c; return 0; }
void NeuronCompilation_free(void *c) { (void)c; }
int NeuronCompilation_getSupportedOperations(Model *m, uint32_t count, bool *supported) {
    (void)m; fprintf(out(), "asked of %u\n", count);
    for (uint32_t i = 0; i < count; i++) supported[i] = true;
    return 0;
}
int NeuronCompilation_getCompiledNetworkSize(void *c, size_t *size) { (void)c; *size = 64; return 0; }
int NeuronCompilation_storeCompiledNetwork(void *c, void *data, size_t size) { (void)c; memset(data, 0, size); return 0; }
int NeuronCompilation_setOptimizationHint(void *c, uint32_t hint) { (void)c; (void)hint; return 0; }
int NeuronCompilation_setOptimizationString(void *c, const char *text) { (void)c; (void)text; return 0; }
int NeuronCompilation_setPreference(void *c, int wish) { (void)c; (void)wish; return 0; }
int NeuronCompilation_setPriority(void *c, int priority) { (void)c; (void)priority; return 0; }
int NeuronCompilation_setL1MemorySizeKb(void *c, uint32_t size) { (void)c; (void)size; return 0; }

/* what only a device needs: refused */
#define REFUSED(name) int name(void) { return 1; }
REFUSED(NeuronCompilation_getInputPaddedDimensions) REFUSED(NeuronCompilation_getInputPaddedSize)
REFUSED(NeuronCompilation_getOutputPaddedDimensions) REFUSED(NeuronCompilation_getOutputPaddedSize)
REFUSED(NeuronExecution_compute) REFUSED(NeuronExecution_create) REFUSED(NeuronExecution_free)
REFUSED(NeuronExecution_setBoostHint) REFUSED(NeuronExecution_setConfig)
REFUSED(NeuronExecution_setInputFromMemory) REFUSED(NeuronExecution_setOutputFromMemory)
REFUSED(NeuronMemory_createFromAHardwareBuffer) REFUSED(NeuronMemory_createFromFd) REFUSED(NeuronMemory_free)
