/* What ggml's Metal backend takes of Apple's Foundation, by its public documentation: for compiling where there is no Mac, see .ci/macos. */
#pragma once
#include <Block.h>
#include <dispatch/dispatch.h>
#include <inttypes.h>
#include <mach/mach.h>
#include <objc/NSObject.h>
#include <stdbool.h>
#include <stddef.h>
#include <unistd.h>

typedef struct { NSUInteger location, length; } NSRange;
static inline NSRange NSMakeRange(NSUInteger location, NSUInteger length) { return (NSRange){location, length}; }
typedef struct { unsigned long state; id *itemsPtr; unsigned long *mutationsPtr; unsigned long extra[5]; } NSFastEnumerationState;
@class NSString, NSArray<T>, NSError;

@protocol NSCopying
@end
@protocol NSFastEnumeration
- (NSUInteger)countByEnumeratingWithState:(NSFastEnumerationState *)state objects:(id [])buffer count:(NSUInteger)length;
@end

typedef NSUInteger NSStringEncoding;
enum { NSUTF8StringEncoding = 4 };
@interface NSCharacterSet : NSObject
+ (NSCharacterSet *)whitespaceCharacterSet;
@end
@interface NSString : NSObject <NSCopying>
@property(readonly) NSUInteger length;
@property(readonly) const char *UTF8String;
@property(readonly, copy) NSString *stringByStandardizingPath, *stringByDeletingLastPathComponent;
+ (instancetype)stringWithUTF8String:(const char *)text;
+ (instancetype)stringWithCString:(const char *)text encoding:(NSStringEncoding)encoding;
+ (instancetype)stringWithFormat:(NSString *)format, ... __attribute__((format(__NSString__, 1, 2)));
+ (instancetype)stringWithContentsOfFile:(NSString *)path encoding:(NSStringEncoding)encoding error:(NSError **)error;
+ (NSString *)pathWithComponents:(NSArray<NSString *> *)components;
- (instancetype)initWithBytes:(const void *)bytes length:(NSUInteger)length encoding:(NSStringEncoding)encoding;
- (BOOL)isEqualToString:(NSString *)other;
- (BOOL)containsString:(NSString *)other;
- (NSString *)substringToIndex:(NSUInteger)to;
- (NSString *)stringByAppendingPathComponent:(NSString *)part;
- (NSString *)stringByAppendingPathExtension:(NSString *)extension;
- (NSString *)stringByTrimmingCharactersInSet:(NSCharacterSet *)set;
- (NSArray<NSString *> *)componentsSeparatedByString:(NSString *)separator;
@end
@interface NSMutableString : NSString
- (void)appendString:(NSString *)other;
@end
@interface NSNumber : NSObject
@property(readonly) int intValue;
+ (NSNumber *)numberWithInt:(int)value;
@end

@interface NSArray<T> : NSObject <NSFastEnumeration>
@property(readonly) NSUInteger count;
+ (instancetype)arrayWithObjects:(const T[])objects count:(NSUInteger)count;
- (T)objectAtIndexedSubscript:(NSUInteger)index;
@end
@interface NSMutableArray<T> : NSArray<T>
- (void)addObject:(T)object;
- (void)removeObject:(T)object;
- (void)removeAllObjects;
@end
@interface NSDictionary<K, V> : NSObject <NSFastEnumeration>
+ (instancetype)dictionary;
+ (instancetype)dictionaryWithObjects:(const V[])objects forKeys:(const id<NSCopying>[])keys count:(NSUInteger)count;
- (V)objectForKey:(K)key;
- (V)objectForKeyedSubscript:(K)key;
@end
@interface NSMutableDictionary<K, V> : NSDictionary<K, V>
- (void)setObject:(V)object forKey:(K)key;
- (void)setObject:(V)object forKeyedSubscript:(K)key;
@end
@interface NSSet<T> : NSObject <NSFastEnumeration>
+ (instancetype)set;
+ (instancetype)setWithArray:(NSArray<T> *)array;
- (BOOL)containsObject:(T)object;
@end
@interface NSMutableSet<T> : NSSet<T>
- (void)addObject:(T)object;
@end

extern NSString *const NSLocalizedDescriptionKey;
@interface NSError : NSObject
@property(readonly, copy) NSString *localizedDescription;
+ (instancetype)errorWithDomain:(NSString *)domain code:(NSInteger)code userInfo:(NSDictionary *)info;
@end
@interface NSURL : NSObject
+ (NSURL *)fileURLWithPath:(NSString *)path;
@end
@interface NSScanner : NSObject
@property(copy) NSCharacterSet *charactersToBeSkipped;
+ (instancetype)scannerWithString:(NSString *)string;
- (BOOL)scanString:(NSString *)string intoString:(NSString **)result;
- (BOOL)scanUpToString:(NSString *)string intoString:(NSString **)result;
@end
@interface NSLock : NSObject
- (void)lock;
- (void)unlock;
@end
@interface NSProcessInfo : NSObject
@property(class, readonly) NSProcessInfo *processInfo;
@property(readonly, copy) NSArray<NSString *> *arguments;
@property(readonly, copy) NSDictionary<NSString *, NSString *> *environment;
@end
@interface NSBundle : NSObject
+ (NSBundle *)bundleForClass:(Class)class;
- (NSString *)pathForResource:(NSString *)name ofType:(NSString *)extension;
@end
extern NSString *const NSFileType, *const NSFileTypeSymbolicLink;
@interface NSFileManager : NSObject
@property(class, readonly) NSFileManager *defaultManager;
- (BOOL)isReadableFileAtPath:(NSString *)path;
- (NSDictionary<NSString *, id> *)attributesOfItemAtPath:(NSString *)path error:(NSError **)error;
- (NSString *)destinationOfSymbolicLinkAtPath:(NSString *)path error:(NSError **)error;
@end
